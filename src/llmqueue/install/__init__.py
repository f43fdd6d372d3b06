"""`llmqueue init`: inspects the table, checks whether it can be adopted, plans the remaining steps and runs them online.

Read adopt.py first. Other packages need only `install` and `plan`.
"""
