"""What `make bench` measures. Each of its processes uses TensorFlow as the job does, and says only its errors."""

from job.__main__ import set_up_tensorflow

# The notes of TensorFlow would hide the rows.
set_up_tensorflow(log_level="2")
