from ddpm_hf.cli import main

main()
