"""What rewritten graphs call."""
