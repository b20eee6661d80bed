"""Real processes: gunicorn, the commands, honcho, nginx."""
