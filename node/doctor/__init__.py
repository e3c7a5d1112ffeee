"""What keeps this machine from training, or from being reached: examined, one line each."""
