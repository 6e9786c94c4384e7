"""Strict readers (and two writers) of model folders. A stranger's file is hostile until checked."""
