"""Learning rounding and step sizes unit by unit: the engine under AdaRound, BRECQ, QDrop and GENIE-M."""
