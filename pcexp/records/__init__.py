"""What runs leave on disk: cells, manifests, tables, archives."""
