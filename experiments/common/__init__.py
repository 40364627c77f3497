"""What the experiments that compare arms share: rows of `convpeft compare`, contrasts between arms, words."""
