"""From YAML to the typed cells of a study."""
