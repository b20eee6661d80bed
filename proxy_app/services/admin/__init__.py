"""What an operator sees and does: the use cases behind the admin pages and `/admin/api/`."""
