"""What a streamed step costs on one device, beside the plain optimizer's."""
