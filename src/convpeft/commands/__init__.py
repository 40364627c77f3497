"""What each command does between its arguments and what it prints."""
