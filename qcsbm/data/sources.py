"""The sources of datasets: functions from a configuration to training and test splits."""

from qcsbm.data.digits import digits
from qcsbm.data.patches import patches

SOURCES = {"digits": digits, "patches": patches}
