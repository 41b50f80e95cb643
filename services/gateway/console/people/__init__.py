"""What the console's pages of people read and change, without NiceGUI."""
