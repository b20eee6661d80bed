"""gunicorn's settings for the naive gateway: its own defaults, with connections kept as long as Caravan keeps them."""

keepalive = 75
control_socket_disable = True
