"""Models to read and steer, in this process or on a server, and where they fit."""
