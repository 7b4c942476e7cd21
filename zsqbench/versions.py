"""The versions that developers raise by hand when code changes numbers, and the code that each version covers.

Keys hash data, options and the versions below, but not code. If you change the results of code, raise the version
that covers this code. Then everything that depends on the code is made again:

- `version` of a method: the file of that method;
- `SYNTHESIS_VERSION`: zsqbench.synthesis, and what generators use of zsqbench.methods;
- `QUANT_VERSION`: zsqbench.quant, and what quantizers use of zsqbench.methods;
- `EVALUATION_VERSION`: what is kept of an evaluation, float or quantized;
- `EXPORT_VERSION`: what an exported file holds, and how it is checked and timed;
- `DIAGNOSTICS_VERSION`: what diagnostics of a calibration set mean or show;
- `ANALYSIS_VERSION`: what the errors of the tensors of a quantized network mean or show.

Images stay valid after a change in quantization, because their keys do not hold `QUANT_VERSION`. A quantizer may
train a generator, so its key holds `SYNTHESIS_VERSION`, too. tests/test_numbers.py holds a few numbers of each shipped
method. It fails if these numbers change without a new version.
"""

SYNTHESIS_VERSION = "6"
QUANT_VERSION = "9"
EVALUATION_VERSION = "3"
EXPORT_VERSION = "2"
DIAGNOSTICS_VERSION = "3"
ANALYSIS_VERSION = "1"
