"""`llmqueue add`: reads tasks from JSONL and CSV and copies them into the tasks table."""
