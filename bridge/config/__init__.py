"""What the package is set to and what it stands on: environment variables, versions."""
