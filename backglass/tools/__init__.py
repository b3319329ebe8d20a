"""What the commands explain, doctor, inspect, lines, list and plot are made of."""
