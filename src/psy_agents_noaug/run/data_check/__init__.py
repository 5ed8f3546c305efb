"""What a training would find in a corpus, and what it would take, before there is one."""
