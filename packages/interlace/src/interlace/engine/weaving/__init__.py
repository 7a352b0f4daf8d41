"""weaving: whether and where a batch is cut in two, and the timing of stages that the decision rests on."""
