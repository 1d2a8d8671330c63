"""From documents to cleaned documents."""
