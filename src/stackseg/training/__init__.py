"""The train stage: from a catalogue to a bundle."""
