"""The parts of the drawn sample picture: land, sky, water, plants and a cabin by a lake."""
