"""The Hugging Face Hub: repositories, uploads, licences and cards."""
