//! `mainland.yaml`: text to resources, with positions in every error.
