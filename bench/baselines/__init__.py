"""What Caravan is compared with: Debian's nginx, and the Flask view that everybody writes first."""
