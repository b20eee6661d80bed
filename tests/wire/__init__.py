"""The product over real sockets: gunicorn workers in front of fakes."""
