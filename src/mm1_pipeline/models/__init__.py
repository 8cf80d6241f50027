"""The MM1 model: image encoder, connector, decoder, as plain torch modules."""
