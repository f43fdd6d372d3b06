"""`python -m llmqueue`."""

from llmqueue.cli import main

main()
