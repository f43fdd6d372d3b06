"""`make fuzz`: nonsense for everything that takes input from outside, for as long as is asked.

__main__   the command
hunt       one target, case after case: deadline, shrinking, what is kept of a failure
nonsense   texts, numbers and bytes that programs stumble over, and how bytes are mutated
add        files for `llmqueue add`, and what is in the table afterwards
replies    HTTP replies of a raw server, through the adapters
settings   environment variables and .env
cli        every verb with every option
"""
