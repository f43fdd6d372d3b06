"""`make fuzz`: feeds nonsense to everything that takes input from outside, for a given time.

__main__   the command
hunt       one target, case after case: deadline, shrinking, and the record of a failure
nonsense   difficult texts, numbers and bytes, and mutation of bytes
add        files for `llmqueue add`, and the contents of the table afterwards
replies    HTTP replies of a raw server, through the adapters
settings   environment variables and .env
cli        every verb with every option
"""
