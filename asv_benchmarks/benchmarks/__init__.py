"""The asv suite: how fast, how exact, how lean and how large nbbce is, from commit to commit."""
