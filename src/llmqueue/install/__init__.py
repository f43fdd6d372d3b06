"""`llmqueue init`: inspects and checks the table to adopt, plans the remaining steps, and runs them online.

Read adopt.py first. Other packages need only `install` and `plan`.
"""
