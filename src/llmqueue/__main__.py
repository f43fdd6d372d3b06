"""Runs the command line: `python -m llmqueue`."""

from llmqueue.cli import main

main()
