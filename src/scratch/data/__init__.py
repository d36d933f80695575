"""Data that the chapters learn from; nothing is downloaded."""
