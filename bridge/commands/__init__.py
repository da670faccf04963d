"""What ``mindspeed-ms`` does, one module per command."""
