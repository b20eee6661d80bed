"""`python -m proxy_app.cli`."""

from proxy_app.cli import main

main()
