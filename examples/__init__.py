"""Programs that show taskloom at work; run them from the root of the repository."""
