"""What is published to the Hub: encoder, decoder, processor and pipeline."""
