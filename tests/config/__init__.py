"""Tests of the configuration: schema, hardware, arguments, plan and manual."""
