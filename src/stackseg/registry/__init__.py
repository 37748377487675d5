"""Registered versions: register, list, the gate, the champion."""
