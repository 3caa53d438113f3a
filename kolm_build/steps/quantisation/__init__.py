"""Methods that look at data before they round: GPTQ, AWQ, SmoothQuant, and their calibration."""
