"""Names in the hand-written feature data that may be swapped for others, by eye.

A word that is also an ordinary one (Rose, Mark, Will), a real place, a brand or a feast is left
out: swapped, it would change more than a name. ``FURTHER`` are names that only come in.
"""

WOMEN = """
Achieng Adaeze Adelheid Agnieszka Aigerim Aiko Aino Amara Anjali Anneke Annika Anouk Aroha Augusta
Ayesha Bea Beatrix Bernadett Bettina Bianca Bilge Birgit Birgitta Birte Bronwen Bronwyn Carla
Carmen Catalina Chenai Clementine Colette Dagny Delphine Dilnoza Doina Dora Dorothea Edelgard
Ekaterina Esperanza Ewa Farah Femke Fenna Ffion Freya Fumiko Gemma Gerda Gerlinde Ginevra Gitte
Graciela Greta Gwen Halima Hana Hanne Hannelore Hasmik Hedda Hedwig Helga Henrike Hortense Ibtisam
Ida Ifeoma Ifunanya Ilse Imani Imogen Ingrid Inês Iolanda Jadwiga Jessica Jitka Jolanta Josie
Kalea Katya Kirsten Kjersti Konstanze Lavinia Leila Leilani Leocadia Leopoldine Linnea Lorna
Lucinda Lucía Ludmila Maelle Marguerite Maribel Marisol Marit Marta Marwa Mavis Mbali Meera
Mehwish Milica Mirela Miyu Moira Nadia Nadine Ngozi Nkechi Nokuthula Nomvula Noriko Odette Odile
Olena Olga Oona Orsolya Osyth Ottilie Ottoline Paloma Parisa Perpetua Perrine Petra Philippa
Priscila Priscilla Priyanka Pushpa Radmila Rahel Rebekka Reena Reinhild Remedios Renske Rosalind
Rosamund Rosheen Rubina Ruth Salma Salome Samina Saoirse Sarah Saskia Shoshana Shreya Signe Sigrid
Siobhán Sofía Solfrid Solvei Solveig Soraya Sunniva Svetlana Swati Tamar Tamsin Thandi Thandiwe
Tordis Tove Tsvetana Ulla Ulrike Wanjiru Wendeline Wilhelmina Winifred Ximena Xochitl Yevgenia
Yewande Yoshiko Yusra Zanele Zodwa Zofia Zuri
""".split()

MEN = """
Abdi Abdou Aldo Aldous Alejo Aleksi Amadou Anil Anselm Aurelio Babatunde Baptista Baptiste Bartek
Bashir Benedikt Benedito Benoît Bert Bilal Bogdan Bram Casimir Casper Chidi Colm Cornelius Crispin
Daniyar Darnell Dawit Desmond Diego Eberhard Efosa Emeka Emre Enrique Evander Faizan Falk Farid
Farouk Farrukh Femi Ferdinand Finn Gareth Gaspard Gerald Gintaras Gunnar Gustavo Gwendal Gwil
Hamid Hamza Hassan Hermínio Hjalte Hugo Idris Idrissa Imre Ioan Ishaan Iskander Iñaki Jamal Jarek
Jiho Joao Joaquim Joaquín Jomo Jonas Jovan Jules Kacper Kasper Kaveh Keahi Kenji Klaus Kofi Kojo
Kolbjorn Kwabena Kwame Kuba Lamin Lars Lasse Leopold Lubomir Luca Lucho Lucian Ludo Lwazi Malachy
Manfred Mateo Mateus Matthijs Mikkel Milo Mirko Nils Obadiah Olatunji Oluwaseun Omar Oren Oskar
Ossian Otis Ottmar Pavel Pekka Pelle Piet Pradeep Quentin Quim Quirin Radek Radomir Rafa Rasmus
Ravindra Raúl Riad Rodolfo Rodrigo Rohan Rolf Rory Rosco Ruaridh Ruben Rune Rurik Sandor Severin
Sizwe Solomon Stellan Sunil Sven Tadeusz Tamaz Tariq Tarquin Teo Teodor Themba Theo Thiago Tobenna
Tobi Tobias Tomasi Tunde Vasily Vikram Wiktor Wim Wiremu Wojciech Wouter Xolani Yuto Zayd Zoltán
Zubair
""".split()

FAMILIES = """
Abara Adeyemi Adjei Achterberg Barrientos Benhaddou Beridze Bhattarai Bielak Brandl Brandström
Brandvold Brodersen Castellano Castellanos Dahlgaard Dasgupta Dornfeld Dragunov Duarte Echeverría
Elderfield Emmerich Eriksen Falko Farkas Farrokhzad Fenwick Ferreira Fuentes Haddad Halász
Hallgrim Halloran Halvorsen Hartono Ilieva Kariuki Khumalo Kiplagat Lemaire Lindgaard Lindqvist
Marchetti Menchaca Morávková Nakamura Ndlovu Ndoye Novak Nowak Nwachukwu Nwosu Nzeyimana Oduya
Okabe Okamura Okeke Okonjo Onwudiwe Ostrowski Oyelaran Papadakis Pemberton Pescarin Petersen
Petkova Petrossian Petrosyan Pettersen Quayle Quiroga Quist Radebe Salgueiro Sandvik Sarpong Sato
Tanaka Tolliver Valtonen Vandersteen Varga Vassilakis Villanueva Vinther Waweru Whitlock Yilmaz
""".split()

PLACES = """
Aerolane Alderbrook Aldgrave Almby Amberline Ardania Ascenda Ashgate Basketeer Birchwick Brackwell
Bremholm Caldermoor Corvale Corvane Dunmere Farrowgate Fennick Fjellhaug Fjordbank Gillbeck
Gorsedale Halvik Harrowgate Hemden Hestnes Illovar Kalvik Karvelia Kirkgate Kuhlmann Kyjov
Lindmoor Lowmarsh Marrowdale Mossend Munchly Nordklang Nordlys Oakmere Ostrander Pulsewatch Roamly
Saltby Saltmarsh Sandreef Sentrivo Skarnholm Starhollow Stromquell Sundvik Tallinge Tamaroa Tarvik
Tennet Tessaly Trabizan Trekfoot Trellick Velmora Vestmar Vestrand Volari Wexcombe Wharfside
Zephra Zipcab
""".split()
"""Towns, shops and firms, all invented."""

FURTHER = {
    "women": """
Alma Antonina Brigid Chiara Daniela Elif Fatou Giulia Hilda Irina Jana Jovana Kamila Larissa Ljuba
Maja Malin Nasrin Nour Oksana Paula Ragnhild Rosanna Sanna Sibel Tereza Usha Valeria Vera Wiebke
Yara Zainab Zsófia Ásta
""".split(),
    "men": """
Andrei Boris Cem Dario Edvard Erik Felix Fyodor Goran Henrik Igor Janek Karim Leif Levi Marek Nuno
Ottavio Pascal Ramon Salvatore Stefan Tomás Umberto Viktor Willem Yannick Yiannis Zoran Øyvind
""".split(),
    "families": """
Abernethy Bergström Chikwanha Delacourt Ekström Fitzwilliam Gallagher Horváth Iwamoto Jankowski
Kowalczyk Lindholm Mbeki Nikolaidis Oyelowo Pietrangeli Quintero Rasmussen Szabó Takahashi
Underhill Vasquez Wickramasinghe Yamashita Zielinski
""".split(),
    "places": """
Arnwick Bellmarsh Cranmoor Drumsall Elverby Fosswick Grimsdale Hollowby Ivelstone Jorvend Kelbrook
Larkmere Merrowton Norrvik Oldersund Penhallow Quernby Ravelstone Selmarsh Thornquay Ulverdal
Vennick Westrup Yarrowby Zandervoort Brightly Cartello Findora Lumora Parcello
""".split(),
}
