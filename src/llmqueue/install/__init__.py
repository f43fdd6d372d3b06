"""`llmqueue init`: what the table looks like, whether it can be adopted, which steps are left, and doing them online.

Read adopt.py first; `install` and `plan` are all that others need.
"""
