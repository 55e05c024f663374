"""Labels of harm by judges of known accuracy beside people's, with labels at random as a control."""
