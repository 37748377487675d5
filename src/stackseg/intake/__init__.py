"""What `add` and `sample` do: look at a user's files, propose settings, write stacks."""
