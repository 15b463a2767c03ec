"""The gradient microscope: what each estimator of the policy gradient gives for equal samples."""
