"""The versions that are raised by hand where code changes numbers, and what each of them covers.

Keys hash data, options and the versions below, not code. So whoever changes what code computes raises the version that
covers it, and all that depends on it is made again:

- `version` of a method: the file of that method;
- `SYNTHESIS_VERSION`: zsqbench.synthesis, and what generators use of zsqbench.methods;
- `QUANT_VERSION`: zsqbench.quant, and what quantizers use of zsqbench.methods;
- `EVALUATION_VERSION`: what is kept of an evaluation, float or quantized;
- `EXPORT_VERSION`: what an exported file holds, and how it is checked and timed;
- `DIAGNOSTICS_VERSION`: what diagnostics of a calibration set mean or show;
- `ANALYSIS_VERSION`: what the errors of the tensors of a quantized network mean or show.

Images outlive a change in quantization: no key of theirs holds `QUANT_VERSION`. A quantizer may train a generator, so
its key holds `SYNTHESIS_VERSION`, too. tests/test_numbers.py holds a few numbers of each shipped method, and fails
where they change without a version.
"""

SYNTHESIS_VERSION = "6"
QUANT_VERSION = "9"
EVALUATION_VERSION = "3"
EXPORT_VERSION = "2"
DIAGNOSTICS_VERSION = "3"
ANALYSIS_VERSION = "1"
