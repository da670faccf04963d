"""Nothing is switched on by importing this."""
