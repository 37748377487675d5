"""All that using a trained model needs: network, bundle, segment()."""
