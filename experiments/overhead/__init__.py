"""What the library adds to a plain program: per local step, and to compile."""
